"""As much of Qdrant's REST interface as the hooks and their tests use, before Qdrant's own engine (``qdrant-edge-py``).

``python qdrant_rest.py PORT DIRECTORY``. What is stored, indexed, filtered and found is the engine's doing, as it is on
a server; what is sent and answered follows Qdrant's OpenAPI description. No cluster, no snapshots, no security.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge

# Clients complain of servers that are much older or newer than they are.
VERSION = importlib.metadata.version("qdrant-client")
KINDS = {
    name.lower(): getattr(edge.PayloadSchemaType, name) for name in ("Keyword", "Integer", "Float", "Bool", "Text")
}
DISTANCES = {name: getattr(edge.Distance, name) for name in ("Cosine", "Dot", "Euclid", "Manhattan")}


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Collection:
    def __init__(self, directory: Path, vectors: dict[str, Any], graph: dict[str, Any]) -> None:
        self.vectors = vectors
        self.graph = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000, **graph}
        params = _vector_params(vectors) if "size" in vectors else {n: _vector_params(v) for n, v in vectors.items()}
        config = edge.EdgeConfig(
            vectors=params,
            hnsw_config=edge.HnswIndexConfig(**self.graph),
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),
            wal_enabled=False,
        )
        self.shard = edge.EdgeShard.create(str(directory), config)

    def info(self) -> dict[str, Any]:
        info = self.shard.info()
        schema = {key: _index_info(index) for key, index in info.payload_schema.items()}
        return {
            "status": "green",
            "optimizer_status": "ok",
            "points_count": info.points_count,
            "indexed_vectors_count": info.indexed_vectors_count,
            "segments_count": info.segments_count,
            "payload_schema": schema,
            "config": {
                "params": {"vectors": self.vectors},
                "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
                "hnsw_config": self.graph,
                "optimizer_config": {
                    "deleted_threshold": 0.2,
                    "vacuum_min_vector_number": 1000,
                    "default_segment_number": 0,
                    "flush_interval_sec": 5,
                },
            },
        }

    def update(self, operation: dict[str, Any]) -> None:
        if "upsert" in operation:
            points = operation["upsert"]["points"]
            for point in points:
                self._check(point["vector"])
            self.shard.update(
                edge.UpdateOperation.upsert_points([edge.Point(p["id"], p["vector"], p.get("payload")) for p in points])
            )
        else:
            self.shard.update(edge.UpdateOperation.delete_points(operation["delete"]["points"]))

    def _check(self, given: Any) -> None:
        """As a server does before it writes anything."""
        for name, vector in given.items() if isinstance(given, dict) else [("", given)]:
            params = self.vectors.get(name) if name else self.vectors
            if not params or "size" not in params:
                raise Refused(400, f"Wrong input: Not existing vector name error: {name}")
            if len(vector) != params["size"]:
                raise Refused(400, "Wrong input: Vector dimension error")

    def index(self, field: str, schema: Any) -> None:
        if isinstance(schema, dict):
            if schema["type"] != "keyword":
                raise Refused(400, f"no such index here: {schema}")
            schema = edge.KeywordIndexParams(is_tenant=schema.get("is_tenant"))
        else:
            schema = KINDS[schema]
        self.shard.update(edge.UpdateOperation.create_field_index(field, schema))

    def query(self, body: dict[str, Any]) -> dict[str, Any]:
        vector = body["query"]["nearest"] if isinstance(body["query"], dict) else body["query"]
        params = edge.SearchParams(exact=True) if (body.get("params") or {}).get("exact") else None
        found = self.shard.query(
            edge.QueryRequest(
                limit=body.get("limit", 10),
                query=edge.Query.Nearest(vector, body.get("using")),
                filter=_filter(body.get("filter")),
                params=params,
                with_payload=_selected(body),
            )
        )
        return {"points": [{**_point(one), "version": one.version, "score": one.score} for one in found]}

    def scroll(self, body: dict[str, Any]) -> dict[str, Any]:
        points, offset = self.shard.scroll(
            edge.ScrollRequest(
                offset=body.get("offset"),
                limit=body.get("limit", 10),
                filter=_filter(body.get("filter")),
                with_payload=_selected(body),
            )
        )
        return {"points": [_point(one) for one in points], "next_page_offset": offset and str(offset)}

    def count(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"count": self.shard.count(edge.CountRequest(filter=_filter(body.get("filter")), exact=True))}

    def retrieve(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        found = self.shard.retrieve(body["ids"], _selected(body), bool(body.get("with_vector")))
        return [{**_point(one), "vector": one.vector} for one in found]


def _vector_params(params: dict[str, Any]) -> Any:
    return edge.EdgeVectorParams(size=params["size"], distance=DISTANCES[params["distance"]])


def _index_info(index: Any) -> dict[str, Any]:
    kind = next(name for name, known in KINDS.items() if known == index.data_type)
    params = index.params
    told = {"type": "keyword", "is_tenant": params.is_tenant} if isinstance(params, edge.KeywordIndexParams) else None
    return {"data_type": kind, "points": index.points, "params": told}


def _selected(body: dict[str, Any]) -> Any:
    return body.get("with_payload", False)


def _point(point: Any) -> dict[str, Any]:
    return {"id": str(point.id), "payload": point.payload}


def _filter(told: dict[str, Any] | None) -> Any:
    if told is None:
        return None
    parts = {name: _conditions(told[name]) for name in ("must", "should", "must_not") if told.get(name) is not None}
    return edge.Filter(**parts)


def _conditions(told: Any) -> list[Any]:
    return [_condition(one) for one in (told if isinstance(told, list) else [told])]


def _condition(told: dict[str, Any]) -> Any:
    if "key" not in told:
        return _filter(told)
    if (range_ := told.get("range")) is not None:
        return edge.FieldCondition(told["key"], range=edge.RangeFloat(**range_))
    match = told["match"]
    if "any" in match:
        return edge.FieldCondition(told["key"], match=edge.MatchAny(match["any"]))
    value = match["value"]
    # A bool is taken for the integer that it is in Python.
    value = np.bool_(value) if isinstance(value, bool) else value
    return edge.FieldCondition(told["key"], match=edge.MatchValue(value))


class Service:
    """All collections; one request at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.collections: dict[str, Collection] = {}
        self.aliases: dict[str, str] = {}
        self.made = 0
        self.turn = threading.Lock()

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> Any:
        match method, *path:
            case "GET", "collections":
                return {"collections": [{"name": name} for name in self.collections]}
            case "GET", "aliases":
                told = [{"alias_name": name, "collection_name": of} for name, of in self.aliases.items()]
                return {"aliases": told}
            case "POST", "collections", "aliases":
                for action in body["actions"]:
                    ((kind, told),) = action.items()
                    self.change_alias(kind, **told)
                return True
            case "GET", "collections", name, "exists":
                return {"exists": self.aliases.get(name, name) in self.collections}
            case "PUT", "collections", name:
                if name in self.aliases:
                    raise Refused(400, f"Wrong input: Alias `{name}` already exists!")
                if name in self.collections:
                    raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
                self.made += 1
                graph = {key: value for key, value in (body.get("hnsw_config") or {}).items() if value is not None}
                self.collections[name] = Collection(self.directory / str(self.made), body["vectors"], graph)
                return True
            case "DELETE", "collections", name:
                self.aliases = {alias: of for alias, of in self.aliases.items() if of != name}
                return self.collections.pop(name, None) is not None
        if len(path) < 2 or path[0] != "collections":
            raise Refused(404, "no such route here")
        name = self.aliases.get(path[1], path[1])
        if name not in self.collections:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        collection = self.collections[name]
        match method, *path[2:]:
            case ("GET",):
                return collection.info()
            case ("PATCH",):  # a server optimizes by itself as well, sooner or later
                return collection.shard.optimize()
            case "PUT", "index":
                collection.index(body["field_name"], body["field_schema"])
                return {"operation_id": 1, "status": "completed"}
            case "PUT", "points":
                collection.update({"upsert": body})
                return {"operation_id": 1, "status": "completed"}
            case "POST", "points", "batch":
                for operation in body["operations"]:
                    collection.update(operation)
                return [{"operation_id": 1, "status": "completed"} for _ in body["operations"]]
            case "POST", "points", "query":
                return collection.query(body)
            case "POST", "points", "scroll":
                return collection.scroll(body)
            case "POST", "points", "count":
                return collection.count(body)
            case "POST", "points":
                return collection.retrieve(body)
        raise Refused(404, "no such route here")

    def change_alias(
        self,
        kind: str,
        alias_name: str = "",
        collection_name: str = "",
        old_alias_name: str = "",
        new_alias_name: str = "",
    ) -> None:
        if kind == "create_alias":
            if collection_name not in self.collections:
                raise Refused(404, f"Not found: Collection `{collection_name}` doesn't exist!")
            if alias_name in self.collections:
                raise Refused(409, f"Wrong input: Collection `{alias_name}` already exists!")
            self.aliases[alias_name] = collection_name
        elif kind == "delete_alias":
            self.aliases.pop(alias_name, None)
        elif old_alias_name not in self.aliases:
            raise Refused(404, f"Not found: Alias {old_alias_name} does not exists!")
        else:  # a server does not look whether there is a collection of that name
            self.aliases[new_alias_name] = self.aliases.pop(old_alias_name)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Service

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = [part for part in self.path.partition("?")[0].split("/") if part]
        status = 200
        answer: dict[str, Any]
        try:
            if not path:
                answer = {"title": "qdrant - vector search engine", "version": VERSION}
            else:
                with self.service.turn:
                    result = self.service.answer(self.command, path, json.loads(body) if body else {})
                answer = {"result": result, "status": "ok", "time": 0.0}
        except Refused as error:
            status, answer = error.status, {"status": {"error": str(error)}, "time": 0.0}
        except Exception as error:
            status, answer = 500, {"status": {"error": f"{type(error).__name__}: {error}"}, "time": 0.0}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _handle

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Say nothing of each request."""


class HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    port, directory = sys.argv[1:]
    Handler.service = Service(Path(directory))
    Handler.wbufsize = 1 << 16  # an answer is one packet
    HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
