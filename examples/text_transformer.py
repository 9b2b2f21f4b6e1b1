"""Search for the parts of a character transformer: activation, normalization and feed-forward part.

    python examples/text_transformer.py [--estimator first-order] [--steps 300]

The text is docstrings of Python's standard library. The transformer reads 64 characters and predicts each next one;
its two blocks share their choices. The derived module and GPT-2's choices (gelu, layer, plain) are then trained from
the same initial weights and tested on text that neither search nor training has seen. Expected after one minute on
two cores, in nats per character:

    normalization layer, feed forward convolved, activation relu
    test loss, usual choices  2.491
    test loss, found choices  2.112
"""

import argparse
import inspect
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sgenas as sg

CHANNELS, HEADS, LENGTH, BATCH = 64, 4, 64, 32
MODULES = ("argparse", "collections", "datetime", "decimal", "email.message", "inspect", "ipaddress", "logging")
USUAL = {"activation": "gelu", "normalization": "layer", "feed forward": "plain"}
ESTIMATORS = {"first-order": sg.FirstOrder(), "sge": sg.SGE(num_directions=10), "unrolled": sg.Unrolled()}


class Gated(nn.Module):
    """W3 (activation(W1 x) * W2 x), with the parameters of two layers of 4 CHANNELS."""

    def __init__(self) -> None:
        super().__init__()
        hidden = 8 * CHANNELS // 3
        self.gate, self.value = nn.Linear(CHANNELS, hidden), nn.Linear(CHANNELS, hidden)
        self.activation, self.out = activation(), nn.Linear(hidden, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.gate(x)) * self.value(x))


class Convolved(nn.Module):
    """Two layers and between them a convolution over the two characters before."""

    def __init__(self) -> None:
        super().__init__()
        hidden = 4 * CHANNELS
        self.first, self.out = nn.Linear(CHANNELS, hidden), nn.Linear(hidden, CHANNELS)
        self.look_back = nn.Conv1d(hidden, hidden, 3, groups=hidden)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.pad(self.first(x).mT, (2, 0))
        return self.out(self.activation(self.look_back(hidden).mT))


def activation() -> nn.Module:
    return sg.Choice({"gelu": nn.GELU(), "relu": nn.ReLU(), "tanh": nn.Tanh()}, name="activation")


def normalization() -> nn.Module:
    options = {"layer": nn.LayerNorm(CHANNELS), "rms": nn.RMSNorm(CHANNELS), "none": nn.Identity()}
    return sg.Choice(options, name="normalization")


def feed_forward() -> nn.Module:
    plain = nn.Sequential(nn.Linear(CHANNELS, 4 * CHANNELS), activation(), nn.Linear(4 * CHANNELS, CHANNELS))
    return sg.Choice({"plain": plain, "gated": Gated(), "convolved": Convolved()}, name="feed forward")


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); attention is causal."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_feed_forward = normalization(), normalization()
        self.project, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.feed_forward = feed_forward()

    def attention(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.project(x).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.feed_forward(self.before_feed_forward(x))


class Transformer(nn.Module):
    """Characters (B, LENGTH) to logits of each next one (B, LENGTH, characters)."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, CHANNELS), nn.Embedding(LENGTH, CHANNELS)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, characters)
        for embedding in (self.characters, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        x = self.characters(text) + self.places.weight
        return self.head(self.norm(self.blocks(x)))


class Windows:
    """Per epoch ``count`` batches of random pieces of a text, (BATCH, LENGTH + 1)."""

    def __init__(self, text: Tensor, count: int, seed: int) -> None:
        self.text, self.count = text, count
        self.draw = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            starts = torch.randint(len(self.text) - LENGTH, (BATCH, 1), generator=self.draw)
            yield self.text[starts + torch.arange(LENGTH + 1)]


def loss(model: Callable[[Tensor], Tensor], text: Tensor) -> Tensor:
    """Cross-entropy of each next character, in nats."""
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def documentation() -> str:
    """The docstrings of MODULES, of their classes and of their functions."""
    found = []
    for name in MODULES:
        module = __import__(name, fromlist=["_"])
        things = [
            module,
            *(thing for _, thing in inspect.getmembers(module) if inspect.getmodule(thing) is module),
        ]
        for thing in things:
            members = inspect.getmembers(thing, callable) if inspect.isclass(thing) else []
            found += [text for part in (thing, *(m for _, m in members)) if (text := inspect.getdoc(part))]
    # many inherit the same docstring
    return "\n\n".join(dict.fromkeys(found))


def train(model: nn.Module, batches: Windows) -> nn.Module:
    """``model`` after AdamW over the batches."""
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=batches.count)
    for batch in batches:
        adam.zero_grad()
        loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns cross-entropies in nats per character."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default="first-order")
    parser.add_argument("--steps", type=int, default=300, help="of the search, and of each training")
    options = parser.parse_args(arguments)
    begin = time.perf_counter()

    text = documentation()
    alphabet = sorted(set(text))
    numbers = torch.tensor([alphabet.index(character) for character in text])
    training, validation, test = numbers.tensor_split([len(numbers) * 6 // 10, len(numbers) * 8 // 10])

    torch.manual_seed(0)
    space = sg.ModuleSpace(Transformer(len(alphabet)))
    epochs = 10
    result = sg.search(
        space,
        Windows(training, options.steps // epochs, 1),
        Windows(validation, options.steps // epochs, 2),
        loss,
        estimator=ESTIMATORS[options.estimator],
        weight_optimizer=sg.optim.SGD(lr=0.3, momentum=0.9, weight_decay=3e-4, grad_clip=1.0),
        arch_optimizer=sg.optim.Adam(lr=0.03, betas=(0.5, 0.999), weight_decay=1e-3),
        # a large rate with a low end: the feed-forward parts rank differently while it is high
        schedule=sg.schedules.Cosine(0.001),
        epochs=epochs,
        warmup_epochs=3,
        progress=False,
    )
    print(", ".join(f"{name} {option}" for name, option in result.choices.items()))
    found = {}
    for name, choices in {"usual choices": USUAL, "found choices": result.choices}.items():
        model = train(space.build(choices), Windows(numbers[: -len(test)], options.steps, 3))
        with torch.no_grad():
            found[name] = sum(float(loss(model, batch)) for batch in Windows(test, 50, 4)) / 50
        print(f"test loss, {name:15}{found[name]:.3f}")
    print(f"{time.perf_counter() - begin:.0f} seconds")
    return found


if __name__ == "__main__":
    main()
