"""Ways to choose the next token, a file each: `generate.method` names one; generate/method.py says what it exports."""
