"""Blocks grow with the threads that share them."""

import torch

from hyperconformer.cpu import block_size


def test_one_thread_has_smaller_blocks():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = block_size()
        torch.set_num_threads(2)
        assert alone < block_size()
    finally:
        torch.set_num_threads(threads)
