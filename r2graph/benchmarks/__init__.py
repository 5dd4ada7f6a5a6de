"""Benchmarks as questions and graders: the lab's, and seven that others have published."""

from r2graph.benchmarks.catalogue import NAMES, grade, graded_f1, load
from r2graph.benchmarks.question import Question

__all__ = ["NAMES", "Question", "grade", "graded_f1", "load"]
