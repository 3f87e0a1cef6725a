"""What the Alpaca template makes of one instruction, with an input and without one."""

from __future__ import annotations

NO_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSort a list.\n\n### Response:"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSort a list.\n\n### Input:\n[2, 1]\n\n### Response:"
)
