import torch

# The tests' networks are tiny: one thread is as fast as two, and does not suffer when the machine is shared.
torch.set_num_threads(1)
