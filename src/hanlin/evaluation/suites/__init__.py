"""Benchmarks of the field, from the files that their authors publish: questions with options, compared by likelihood.

exams and clue (files -> subjects with questions) -> prompts (what a model is asked) -> run (answers, tables, files).
"""
