"""gRPC's own server as the machine and its own client as the person: one call, a stream both ways, an error with its status."""

import sys
from concurrent import futures

import grpc

port, edge, ca = sys.argv[1:]


class Echo(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == "/echo.Echo/One":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: request)
        if call.method == "/echo.Echo/Many":
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: requests)
        if call.method == "/echo.Echo/Fail":
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked"))
        return None


server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Echo()])
server.add_insecure_port(f"[::1]:{port}")
server.start()
with open(ca, "rb") as file:
    trust = grpc.ssl_channel_credentials(file.read())
options = [("grpc.ssl_target_name_override", "grpc.mashine.dev"), ("grpc.default_authority", "grpc.mashine.dev"),
           ("grpc.enable_http_proxy", 0)]
with grpc.secure_channel(edge, trust, options) as channel:
    assert channel.unary_unary("/echo.Echo/One")(b"x" * 100_000, timeout=20) == b"x" * 100_000
    many = [bytes([n]) * 1000 for n in range(200)]
    assert list(channel.stream_stream("/echo.Echo/Many")(iter(many), timeout=20)) == many
    try:
        channel.unary_unary("/echo.Echo/Fail")(b"", timeout=20)
        raise AssertionError("no error came")
    except grpc.RpcError as error:
        assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "as asked"), error
server.stop(None)
print("passed")
