"""Installs ap_detect. Every requirement has its reason in ARCHITECTURE.md."""

from setuptools import find_packages, setup

# tensorflow-addons imports with TensorFlow up to 2.15 only, and TensorFlow 2.15
# exists for Python up to 3.11 only; hence the two stacks.
ADDONS_STACK = "python_version < '3.12'"
NEWEST_STACK = "python_version >= '3.12'"

# The messages of export/client_grpc.py; each version asks for its TensorFlow, or newer.
SERVING = [
  f"tensorflow-serving-api==2.15.1; {ADDONS_STACK}",
  f"tensorflow-serving-api>=2.16,<2.22; {NEWEST_STACK}",
]

setup(
  name="ap_detect",
  version="0.1.0",
  description="One-stage object detectors trained by ranking, with AP-loss, in TensorFlow 2 / Keras",
  license="Apache-2.0",
  python_requires=">=3.9,<3.14",
  # A wheel has configs/ inside the package, see config_files.py.
  packages=[*find_packages(include=["ap_detect", "ap_detect.*"]), "ap_detect.configs"],
  package_dir={"ap_detect.configs": "configs"},
  entry_points={"console_scripts": ["ap_detect=ap_detect.commands:main"]},
  install_requires=[
    f"tensorflow==2.15.1; {ADDONS_STACK}",
    f"tensorflow-addons==0.23.0; {ADDONS_STACK}",
    f"numpy<2; {ADDONS_STACK}",
    # The tensorboard command of 2.15 imports pkg_resources.
    f"setuptools<81; {ADDONS_STACK}",
    # keras-cv pulls it in; newer ones want a newer protobuf than TensorFlow 2.15 has.
    f"tensorflow-metadata<1.16; {ADDONS_STACK}",
    f"tensorflow>=2.16,<2.22; {NEWEST_STACK}",
    f"tf-keras>=2.16,<2.22; {NEWEST_STACK}",
    "keras-cv==0.9.0",
    "tensorboard",
    "pycocotools",
    "absl-py",
    "ml_collections",
    "defusedxml",
    "PyYAML",
    "Pillow>=10.1",
    # The first that numpy 1 and 2 can both import; Python 3.9 has 3.9.4.
    "matplotlib>=3.9",
    "tqdm",
  ],
  extras_require={
    "gpu": [
      f"tensorflow[and-cuda]==2.15.1; {ADDONS_STACK}",
      f"tensorflow[and-cuda]>=2.16,<2.22; {NEWEST_STACK}",
    ],
    "serving": SERVING,
    # For ap_detect export --format=onnx; from Python 3.10 on.
    "onnx": [
      *("tf2onnx>=1.17", "onnxruntime"),
      # Newer ones want a newer ml_dtypes than TensorFlow 2.15 has.
      f"onnx<1.18; {ADDONS_STACK}",
    ],
    "test": [
      *("pytest", "pytest-xdist>=3.8", "hypothesis"),
      *SERVING,
      # For examples/kerashub_retinanet.py, which runs on Keras 3.
      f"keras-hub>=0.26; {NEWEST_STACK}",
    ],
    "dev": ["ruff", "mypy"],
  },
)
