"""An object store on this machine: moto's S3 server, which can be made to fail."""

import multiprocessing
import socket

import s3fs

BUCKET = "corpora"
FORBIDDEN = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
FOREVER = -1


class ObjectStore:
    """For use in a ``with`` statement.

    ``environment`` is what processes need to find it. ``reads`` counts the reads of
    parts of files. The store answers ``lives`` more of them, and then falls silent.
    While ``forbidden``, it refuses everything. Each is a ``Value`` of multiprocessing.
    """

    def __enter__(self):
        # In a process of its own: a loader's processes would be forked while threads of
        # the server hold locks.
        context = multiprocessing.get_context("spawn")
        self.reads = context.Value("i", 0)
        self.lives = context.Value("i", FOREVER)
        self.forbidden = context.Value("b", False)
        ours, theirs = context.Pipe()
        self.process = context.Process(
            target=serve,
            args=(theirs, self.reads, self.lives, self.forbidden),
            daemon=True,
        )
        self.process.start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ours.recv()}",
            "AWS_ACCESS_KEY_ID": "user",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "no/such/file",
            "AWS_SHARED_CREDENTIALS_FILE": "no/such/file",
            "AWS_MAX_ATTEMPTS": "1",  # botocore would wait for seconds between them
        }
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.join()
        s3fs.S3FileSystem.clear_instance_cache()  # clients of this server

    def upload(self, folder, name):
        """Copy the files of a folder; return where they are."""
        client = s3fs.S3FileSystem()
        if not client.exists(BUCKET):
            client.mkdir(BUCKET)
        for file in folder.iterdir():
            if file.is_file():
                client.pipe_file(f"{BUCKET}/{name}/{file.name}", file.read_bytes())
        return f"s3://{BUCKET}/{name}"


def serve(port, reads, lives, forbidden):
    """Be the server; tell its port."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open, as those of stores do

        def log_request(self, *_):
            pass

    moto = DomainDispatcherApplication(create_backend_app)

    def answer(environment, start_response):
        is_read = "HTTP_RANGE" in environment
        with reads.get_lock():
            reads.value += is_read
            dead = lives.value == 0
            if lives.value > 0:
                lives.value -= is_read
        if dead:
            environment["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        if forbidden.value:
            body = b"" if environment["REQUEST_METHOD"] == "HEAD" else FORBIDDEN
            start_response("403 Forbidden", [("Content-Length", str(len(body)))])
            return [body]
        return moto(environment, start_response)

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Handler)
    port.send(server.server_port)
    server.serve_forever()
