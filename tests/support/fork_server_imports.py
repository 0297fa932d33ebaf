"""Imports of the fork server. They must not start threads: a forked process would not have them."""

import deepspeed  # noqa: F401
import hypothesis  # noqa: F401
import pytest  # noqa: F401
import torch
import torch._dynamo

import ssl_core.pretraining.train  # noqa: F401

torch.set_num_threads(1)
