"""Workers of one run as threads of this process, for tests of what they agree on."""

import concurrent.futures
import copy
import threading

from ap_detect.runs import workers


class Fellow(workers.Workers):
  """One of several workers, which exchange by a list and a barrier.

  Args:
    index: of this one.
    slots: list, shared; as long as there are workers.
    barrier: threading.Barrier for all of them.
    strategy: for what this one computes.
  """

  def __init__(self, index, slots, barrier, strategy=None):
    super().__init__()
    self.index, self.count, self.is_chief = index, len(slots), index == 0
    self._slots, self._barrier, self._strategy = slots, barrier, strategy

  def gather(self, value):
    self._slots[self.index] = copy.deepcopy(value)
    self._barrier.wait(timeout=20)
    values = list(self._slots)
    self._barrier.wait(timeout=20)
    return values

  def distribute(self, make_batches, batch_size):
    batches = make_batches(batch_size // self.count).repeat()
    return self._strategy.experimental_distribute_dataset(batches)


def run_all(function, count=2, strategy=None):
  """What a function of a Fellow returns, or raises as ValueError, to each worker."""
  slots, barrier = [None] * count, threading.Barrier(count)

  def work(index):
    try:
      return function(Fellow(index, slots, barrier, strategy))
    except ValueError as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    return list(pool.map(work, range(count)))
