"""What goes on inside a model: clusters on images, and measures of its tokens block by block."""
