"""What was asked, answered and refused, for how much: exact after any crash; never a word of a prompt."""
