"""The parts of the pipelined language model: text, model, pipeline, training, picture."""
