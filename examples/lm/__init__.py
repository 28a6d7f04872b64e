"""The parts of the example: text, model, pipeline, training, picture."""
