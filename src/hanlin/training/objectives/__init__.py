"""Objectives, a file each: `train.objective` names one; training/objective.py says what it exports."""
