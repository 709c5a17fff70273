"""leafe: training language-model agents to recover from their own mistakes.

An open implementation of LEAFE (Learning Feedback-Grounded Agency from Reflective Experience, arXiv 2603.16843): explore with
reflection and verified rollback, distil the corrections, measure by Pass@k.
"""

__version__ = "0.1.0"
