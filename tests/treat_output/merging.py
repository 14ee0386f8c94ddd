"""What tests of merging share: a tiny base, adapters on it, and the plain pipelines' images."""

import diffusers
import torch

from tests.base_models.families import CASES, pipeline_images
from tests.chain import with_adapters
from tests.treat_output import lora_files as files
from treat import export
from treat.lora import lora_state

ARCHITECTURES = {"flux": "schnell", "sdxl": "sdxl", "sd": "sd1", "kolors": "kolors", "sd3": "sd3"}


class World:
    """A base's folder and a LoRA file in fp32 on it."""

    def __init__(self, case, folder):
        self.case, self.folder = case, folder
        model = CASES[case].model()
        self.guidance = model.guidance
        CASES[case].pipeline().save_pretrained(folder / "base")
        (folder / "base/README.md").write_text("the base's own card")
        (folder / "base/LICENSE.txt").write_text("terms")
        self.prefix = "unet" if case in ("sdxl", "sd", "kolors") else "transformer"
        state = lora_state(with_adapters(model).network)
        self.state = {f"{self.prefix}.{name}": one for name, one in state.items()}
        self.lora = self.file("lora", lambda name, one: one)
        flip = {name: -0.5 * one.flip(0) for name, one in self.state.items()}
        self.other = self.file("other", lambda name, one: flip[name])

    def file(self, name, change):
        path = self.folder / f"{name}.safetensors"
        files.save(path, {n: change(n, one).contiguous() for n, one in self.state.items()})
        return path

    def export(self, out, **options):
        given = {"run": self.lora, "base": str(self.folder / "base"), "dtype": "fp32"}
        export.main(export.Config(**{**given, **options}, out=out))
        return out

    def pipeline(self, folder=None, dtype=torch.float32):
        name = type(CASES[self.case].pipeline()).__name__
        source = folder or self.folder / "base"
        return getattr(diffusers, name).from_pretrained(source, dtype=dtype)

    def images(self, pipeline):
        """Guided as the family is used."""
        return pipeline_images(pipeline, self.guidance).float()

    def with_lora(self, *weights, folder=None, dtype=torch.float32):
        pipeline = self.pipeline(folder, dtype)
        names = []
        for path, _ in weights:
            names.append(path.stem)
            pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)
        pipeline.set_adapters(names, [weight for _, weight in weights])
        return self.images(pipeline)
