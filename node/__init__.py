import services  # noqa: F401 - first of all: it sets what gRPC reads when it is imported
