"""Parts of etcd's transactions."""

from __future__ import annotations

from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb


def get(key: bytes) -> pb.RequestOp:
    """Read ``key``."""
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def put(key: bytes, value: bytes, lease: int = 0) -> pb.RequestOp:
    """Set ``key``, until the lease ends if one is named."""
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


def delete(key: bytes) -> pb.RequestOp:
    """Remove ``key``."""
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def unchanged(key: bytes, revision: int) -> pb.Compare:
    """The comparison that holds while ``key`` was last changed at ``revision``; 0 = it does not exist."""
    return pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=key, mod_revision=revision)


def values(answer: pb.TxnResponse) -> list[pb.KeyValue | None]:
    """The single value, if there is one, that each reading operation of a transaction found."""
    found = [response.response_range.kvs for response in answer.responses]
    return [kvs[0] if kvs else None for kvs in found]
