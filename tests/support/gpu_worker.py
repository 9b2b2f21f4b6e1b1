"""`distributed_worker` on a machine with two pretended GPUs, one for each of two processes."""

import runpy

from pretended_gpu import gpu_machine

if __name__ == "__main__":
    with gpu_machine(gpus=2):
        runpy.run_module("distributed_worker", run_name="__main__")
