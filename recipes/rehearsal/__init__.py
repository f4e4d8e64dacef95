"""Rehearsal: the job that somebody means to submit, here and now, on a small model of the same architecture.

small.py says what that model is, scale.py what becomes of each value, perform.py runs it and tells what that showed;
chained.py does so with all stages of a pipeline, chained anew.
"""
