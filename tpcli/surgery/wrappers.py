"""transformers' wrapper of timm models, which saves the model inside it."""

from __future__ import annotations

import sys
from typing import Any

from .spec import pooling_spec


def write_pooling_of_wrapped() -> None:
    """Make transformers' wrapper of timm models, where it is in use, save how they are pooled.

    Its `save_pretrained` knows nothing of the model inside but its weights.
    """
    module = sys.modules.get("transformers.models.timm_wrapper.modeling_timm_wrapper")
    wrapper = getattr(module, "TimmWrapperPreTrainedModel", None)
    if wrapper is None or "save_pretrained" in vars(wrapper):
        return

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        spec = pooling_spec(self.timm_model)
        self.config.token_pooling = None if spec is None else spec.to_dict()
        return super(wrapper, self).save_pretrained(*args, **kwargs)

    wrapper.save_pretrained = save_pretrained
