"""``hyperconformer serve``: recognition over HTTP and WebSockets."""
