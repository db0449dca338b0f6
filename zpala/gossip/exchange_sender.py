"""What an exchange says to its peer, and on which of the pair's two connections. Keeps nothing; runs in the proxy thread.

OFFER, FETCH, OK and ABORT go up, on my DEALER in my session; ACCEPT, BUSY and DATA go down, on my ROUTER in the peer's. Where there is no
session nothing is sent: every message is repeated or asked for until the exchange ends.
"""

from __future__ import annotations

from zpala.gossip.actions import Outbox, Payload, SendDown, SendUp
from zpala.gossip.exchange_state import Exchange
from zpala.gossip.membership import Member
from zpala.gossip.messages import Abort, Accept, Busy, Data, ExchangeId, Fetch, Offer, Ok


class Sender:
    """Writes to ``outbox``."""

    def __init__(self, outbox: Outbox) -> None:
        self._out = outbox

    # ---- up ---------------------------------------------------------------------------------------------------------------------------

    def offer(self, exchange: Exchange) -> None:
        peer = exchange.peer
        if peer.session_out is not None:
            self._out.add(SendUp(peer.line, Offer(session=peer.session_out, xid=exchange.xid, snapshot=exchange.mine)))

    def fetch(self, exchange: Exchange) -> None:
        peer = exchange.peer
        if peer.session_out is not None:
            self._out.add(SendUp(peer.line, Fetch(session=peer.session_out, xid=exchange.xid)))

    def ok(self, member: Member, xid: ExchangeId, ask: bool) -> None:
        """``ask``: for the peer's OK."""
        if member.session_out is not None:
            self._out.add(SendUp(member.line, Ok(session=member.session_out, xid=xid, ask=ask)))

    def abort(self, member: Member, xid: ExchangeId, code: str) -> None:
        if member.session_out is not None:
            self._out.add(SendUp(member.line, Abort(session=member.session_out, xid=xid, code=code)))

    # ---- down -------------------------------------------------------------------------------------------------------------------------

    def accept(self, exchange: Exchange) -> None:
        peer = exchange.peer
        if peer.link is not None:
            self._out.add(SendDown(peer.link, Accept(session=peer.session_in, xid=exchange.xid, snapshot=exchange.mine)))

    def busy(self, member: Member, xid: ExchangeId, reason: str) -> None:
        if member.link is not None:
            self._out.add(SendDown(member.link, Busy(session=member.session_in, xid=xid, reason=reason)))

    def data(self, exchange: Exchange) -> bool:
        """My frozen snapshot, with my OK when I hold the peer's; False when it cannot be sent."""
        peer = exchange.peer
        if peer.link is None:
            return False
        message = Data(session=peer.session_in, xid=exchange.xid, snapshot=exchange.mine, ok=exchange.has_data)
        self._out.add(SendDown(peer.link, message, Payload("buffer", exchange.own)))
        return True
