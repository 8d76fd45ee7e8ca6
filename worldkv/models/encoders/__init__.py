"""What the published models are told in numbers: a prompt by umT5, a picture by CLIP. Both through `transformers`."""
