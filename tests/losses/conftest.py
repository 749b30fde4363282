import importlib

import pytest

from ap_detect.losses.ranking import engine


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def form(request):
  """Both forms of the engine, one after the other, where a loss asks for none.

  The form for GPUs runs op by op, for XLA takes long to compile it for a CPU; that it
  does compile is seen where a test compiles the loss itself.
  """
  module = importlib.import_module("ap_detect.losses.ranking_loss")
  functions = module._functions

  def functions_of(errors, images_per_ranking, jit_compile, form):
    compiles = jit_compile and form is engine.OnCPU
    return functions(errors, images_per_ranking, compiles, form)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(module, "_form", lambda name: engine.FORMS[name or request.param])
    patch.setattr(module, "_functions", functions_of)
    yield request.param
