"""`import mimkit.timm` registers the encoders of mimkit in timm.

    import mimkit.timm, timm
    backbone = timm.create_model("mimkit_vit_base_patch16", features_only=True,
                                 checkpoint_path="exported/model.safetensors")

The import is what registers, as timm's own modules do; the models are in `mimkit.zoo.timm_registry`.
"""

from mimkit.zoo import timm_registry

default_cfgs = timm_registry.default_configs()
__all__ = timm_registry.register(__name__)
