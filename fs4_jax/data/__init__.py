"""Sources of images, views of them, and the pipelines that feed training and evaluation."""
