"""Rows as users have them (alpaca, ShareGPT, messages, ...): one file per form, told from a row's keys.

A form reads a row into what it says (`content.py`: a dialogue, a text, a preference), and a family's processor makes a
record of that (`processor.TakesForms`). Neither knows the other. A family's own records are never read as anything
else.
"""
