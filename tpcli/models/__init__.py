"""MODEL: load, save and list timm's Vision Transformers."""
