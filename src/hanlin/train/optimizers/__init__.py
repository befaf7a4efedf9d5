"""Optimizers, a file each: `train.optimizer` names one; train/optimizer.py says what it exports."""
