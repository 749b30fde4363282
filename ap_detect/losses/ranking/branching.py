"""Choosing between more than two branches inside the graph."""

from __future__ import annotations

import tensorflow as tf


def first_that_holds(conditions, branches):
  """Runs the branch of the first condition that holds, or else the last branch.

  Nested `tf.cond`, because XLA takes seconds to trace a `tf.switch_case`: it tries to
  evaluate all that the branches use by interpretation, in case it is constant.

  Args:
    conditions: list of [] bool.
    branches: list of functions without arguments, one more than conditions.

  Returns:
    What the branch returns.

  Example:
    >>> no, yes = tf.constant(False), tf.constant(True)
    >>> int(first_that_holds([no, yes], [lambda: 1, lambda: 2, lambda: 3]))
    2
  """
  if not conditions:
    return branches[0]()
  return tf.cond(
    conditions[0], branches[0], lambda: first_that_holds(conditions[1:], branches[1:])
  )
