import torch

# the tests' networks are tiny: one thread is as fast as two, and does not suffer on a shared machine
torch.set_num_threads(1)
