"""The recogniser: features, front end, encoder, decoder, transducer."""
