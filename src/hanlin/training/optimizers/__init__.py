"""Optimizers, a file each: `train.optimizer` names one; training/optimizer.py says what it exports."""
