"""Settings of TensorFlow Serving for an exported model, and how to start it.

They name the model's folder by the place that it has in a container.
"""

from __future__ import annotations

import os

from ap_detect.runs import files

_BATCHING = """\
# Requests that come at the same time are answered as one batch.
# For {encoded}: images of any sizes.
# Images given as pixels (serving_default) must then all have one size.
max_batch_size {{ value: {max_batch_size} }}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 100 }}
num_batch_threads {{ value: 2 }}
{allowed_batch_sizes}
# Padding would make images of different sizes one size, and boxes wrong without a word.
pad_variable_length_inputs: false
"""

_MODELS = """\
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
  }}
}}
"""

_README = """\
# {name}

A detector for TensorFlow Serving, exported by ap_detect. Each numbered folder is a
version; `assets.extra/ap_detect.json` in it says what it is. Start a server in this folder:

```
docker run --rm -p 8500:8500 -p 8501:8501 -v "$PWD:/models/{name}" tensorflow/serving \\
  --model_config_file=/models/{name}/models.config \\
  --enable_batching --batching_parameters_file=/models/{name}/batching.config
```

or, where `tensorflow_model_server` is installed:

```
tensorflow_model_server --port=8500 --rest_api_port=8501 \\
  --model_name={name} --model_base_path="$PWD" \\
  --enable_batching --batching_parameters_file="$PWD/batching.config"
```

| signature | inputs | batched by the server |
|---|---|---|
| `image_bytes` | `image_bytes`: JPEG, PNG or BMP files, of any sizes | yes: use this one |
| `image_bytes_with_thresholds` | the same, and `score_thresholds` [B, K] | yes |
| `tf_example` | `tf_example`: tf.train.Examples with `image/encoded` | yes |
| `serving_default` | `inputs`: uint8 [B, H, W, 3], RGB | only if all images have one size |
| `raw` | `inputs`: float32 of the network's size, RGB 0..255 | yes |

With batching, a request has at most {max_batch_size} images, and requests whose pixels have
different sizes fail together. Leave `pad_variable_length_inputs` off: padded images give
wrong boxes.

Outputs (`raw` has `boxes` and `logits` of all anchors instead): `detection_boxes` [ymin,
xmin, ymax, xmax] from 0 to 1, `detection_scores` (the precision to expect, where
`ap_detect.json` has a `calibration`; so are `score_thresholds`), `detection_classes` (lines
of `assets/labels.txt`, from 1), `detection_names`, `num_detections`, and `valid`, which is
false for what is no image, is a GIF, or has too many pixels.

```
printf '{{"signature_name": "image_bytes", "instances": [{{"image_bytes": {{"b64": "%s"}}}}]}}' \\
  "$(base64 -w0 photo.jpg)" | curl -d @- http://localhost:8501/v1/models/{name}:predict
```
"""


def write(export_dir, model_name, batch_sizes):
  """Writes batching.config, models.config and README.md beside a model's versions.

  Args:
    export_dir: folder of the versions.
    model_name: that clients ask for.
    batch_sizes: that the versions are warmed up for, lowest first.
  """
  texts = {
    "batching.config": _BATCHING.format(
      encoded="image_bytes, image_bytes_with_thresholds and tf_example",
      max_batch_size=batch_sizes[-1],
      allowed_batch_sizes="\n".join(f"allowed_batch_sizes: {n}" for n in batch_sizes),
    ),
    "models.config": _MODELS.format(name=model_name),
    "README.md": _README.format(name=model_name, max_batch_size=batch_sizes[-1]),
  }
  for name, text in texts.items():
    files.write_text(os.path.join(export_dir, name), text)
