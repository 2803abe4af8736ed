"""Export a model to timm's files, ONNX and torch.export, with the same logits."""

import json
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim, ExportedProgram

from vitlab.errors import UserError, first_line
from vitlab.files import replacing, write_json
from vitlab.models import VisionTransformer, timm_facts
from vitlab.models.patch_embedding import PatchEmbedding
from vitlab.weights.standalone import Agreement, Reference, StandaloneModel, check_logits_equal

ARCHITECTURE = "vit_base_patch16_224"  # an entry point to timm's VisionTransformer; every size is an argument of it
# Facts of timm's about the weights that fine-tuning started from, not about the run's.
STARTING_FACTS = (
    *("test_input_size", "test_crop_pct", "test_pool_size"),
    *("label_offset", "label_names", "label_descriptions"),
)
ONNX_LIMIT = 2**31  # bytes of a file
ONNX_TEXT = "images: uint8 [batch, 3, height, width], RGB, of any size; logits, probabilities: float32 [batch, classes]"


def save_timm(network: nn.Module, model: Mapping[str, Any], data: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `model.safetensors` and `config.json`, after timm has rebuilt the model from them with the same logits.

    `timm.create_model("local-dir:<folder>", pretrained=True)` reads both. For a model of timm's at its own image size,
    `timm.create_model(<name>, num_classes=..., checkpoint_path="<folder>/model.safetensors")` works too.

    `network` is on the CPU, in eval mode; `model` and `data` are groups of its run's config, as plain data. Raises
    UserError if timm has no such model, and RuntimeError, with nothing written, if the logits differ.
    """
    architecture, arguments, facts = _describe(network, model, data)
    size = [3, data["image_size"], data["image_size"]]
    config = {
        "architecture": architecture,
        "num_classes": data["num_classes"],
        "label_names": data["classes"],
        "stored_size": data["stored_size"],  # for vitlab: images are first reduced to this side
        "model_args": arguments,
        "pretrained_cfg": {
            **{key: value for key, value in facts.items() if key not in STARTING_FACTS},
            "tag": "vitlab",
            "input_size": size,
            "num_classes": data["num_classes"],
            "crop_pct": 1.0,
            "crop_mode": "center",  # the largest square in the centre is resized, whatever the facts say
            **{key: data[key] for key in ("mean", "std", "interpolation")},
        },
    }
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    if isinstance(network, VisionTransformer) and network.pos_embed is not None:
        weights["pos_embed"] = network.pos_embed.detach().clone().contiguous()  # fixed ones are not in the state_dict
    with tempfile.TemporaryDirectory(dir=folder) as place:
        temporary = Path(place)
        write_json(temporary / "config.json", config)
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        rebuilt = timm.create_model(f"local-dir:{temporary}", pretrained=True).eval()
        images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            check_logits_equal(rebuilt(images), network(images), tolerance=1e-4, library="timm")
        return [(temporary / name).replace(folder / name) for name in ("config.json", "model.safetensors")]


def _describe(
    network: nn.Module, model: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """timm's architecture, its arguments, and further facts for timm's pretrained_cfg."""
    if isinstance(network, VisionTransformer):
        facts = {"fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"}
        return ARCHITECTURE, timm_arguments(network), facts
    if type(network).__module__.startswith("timm.") and "name" in model:
        known = timm_facts(model["name"])
        arguments = dict(model["kwargs"] or {})
        if known.fixed_input_size:
            arguments.setdefault("img_size", data["image_size"])
        facts = known.to_dict(remove_source=True, remove_null=True)  # type: ignore[no-untyped-call]
        return str(known.architecture), arguments, facts
    raise UserError(f"timm has no {type(network).__name__}: use formats=[onnx], which needs no source code")


def timm_arguments(network: VisionTransformer) -> dict[str, Any]:
    """Arguments of `timm.create_model` for the same model; UserError if timm's lacks an option that it uses."""
    block: Any = network.blocks[0]
    lacking = {
        "hidden layer in its head (model.head_hidden_dim)": not isinstance(network.head, nn.Linear),
        "other stem than patches (model.stem)": not isinstance(network.patch_embed, PatchEmbedding),
        "sequence pooling (model.pool=attention)": network.attn_pool is not None,
        "locality self-attention (model.locality_attention)": block.attn.scale is not None,
        "rotary positions (model.rotary)": network.rotation is not None,
        "relative positions (model.relative_bias)": network.relative_bias is not None,
    }
    if used := [name for name, is_used in lacking.items() if is_used]:
        raise UserError(f"timm's ViT has no {', '.join(used)}: use formats=[onnx]")
    assert isinstance(network.patch_embed, PatchEmbedding)
    hidden, embed_dim = block.mlp.fc1.weight.shape
    return {
        "img_size": list(network.image_size),
        "patch_size": list(network.patch_embed.proj.kernel_size),
        "in_chans": network.in_channels,
        "embed_dim": embed_dim,
        "depth": len(network.blocks),
        "num_heads": block.attn.num_heads,
        # timm truncates the product with embed_dim to an integer; the half protects it from rounding down.
        "mlp_ratio": hidden / embed_dim if hidden % embed_dim == 0 else (hidden + 0.5) / embed_dim,
        "qk_norm": isinstance(block.attn.q_norm, nn.LayerNorm),
        "init_values": None if isinstance(block.ls1, nn.Identity) else 1e-5,  # the weights replace it
        "class_token": network.cls_token is not None,
        "reg_tokens": 0 if network.reg_token is None else network.reg_token.shape[1],
        "global_pool": "avg" if network.cls_token is None else "token",
        "fc_norm": False,
        "pos_embed": "none" if network.pos_embed is None else "learn",
        "act_layer": type(block.mlp.act).__name__.lower(),
    }


def trace(model: StandaloneModel) -> ExportedProgram:
    """Trace a model for batches and images of any size; UserError if torch can't export its network."""
    side = model.store.size
    free = {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}
    example = torch.zeros(2, 3, side + 1, side + 2, dtype=torch.uint8)  # equal sizes would be taken for one
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=(free,))
    except Exception as error:  # each model fails in its own way
        raise UserError(
            f"torch.export can't trace {type(model.network).__name__} ({first_line(error)}): use formats=[timm]"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def save_torch_export(
    program: ExportedProgram, classes: Sequence[str], reference: Reference, file: Path
) -> Agreement | None:
    """Write `model.pt2`, a `StandaloneModel` that `torch.export.load` reads without vitlab; its extra file
    `classes.json` has the names of the classes.

    Returns how far it agrees with the reference; RuntimeError, with nothing written, if it does not.
    """
    with replacing(file) as temporary:
        with temporary.open("wb") as target:
            torch.export.save(program, target, extra_files={"classes.json": json.dumps(classes)})
        with temporary.open("rb") as source:
            loaded = torch.export.load(source).module()
        return reference.compare(lambda images: loaded(images)[0], "torch.export")


def onnx_packages() -> tuple[Any, Any]:
    """Import onnx and onnxruntime; raises UserError if one of them, or onnxscript, is missing."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise UserError(
            f'formats=[onnx] needs the package {error.name}: pip install -e ".[onnx]" (formats=[timm] does not)'
        ) from error
    return onnx, onnxruntime


def save_onnx(program: ExportedProgram, classes: Sequence[str], reference: Reference, file: Path) -> Agreement | None:
    """Write `model.onnx`, a `StandaloneModel`: `images` uint8 `[batch, 3, height, width]`, RGB, of any size -> `logits`
    and `probabilities`, float32 `[batch, classes]`. Its metadata hold the names of the `classes` as JSON.

    Returns how far it agrees with the reference; RuntimeError, with nothing written, if it does not. UserError if a
    package is missing, or the model is larger than a file of ONNX.
    """
    onnx, onnxruntime = onnx_packages()
    size = sum(parameter.nbytes for parameter in program.parameters())
    if size >= ONNX_LIMIT:
        raise UserError(f"the weights take {size / 2**30:.1f} GiB, and model.onnx holds 2: use formats=[torch_export]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own versions and torch's
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        exported = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=["logits", "probabilities"],
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            dynamo=True,
            verbose=False,
        )
    model = exported.model_proto  # type: ignore[union-attr]
    model.doc_string = ONNX_TEXT
    onnx.helper.set_model_props(model, {"classes": json.dumps(classes)})
    with replacing(file) as temporary:
        onnx.save(model, temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        return reference.compare(
            lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]), "onnxruntime"
        )
