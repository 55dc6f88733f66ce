"""The built-in demo: a small pretrained ViT and the real images it is measured on."""
