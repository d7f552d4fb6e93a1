"""Controller and registry renew the certificates of their listeners while they run, by real TLS on a clock that is moved."""

from __future__ import annotations

import asyncio
import ssl
from datetime import datetime, timedelta
from pathlib import Path

from controller.trust.pki import SERVER_LIFETIME, Pki, certificate_end
from controller.trust.served import LOOK_SECONDS, follow_certificate
from rkfleet.metric_names import CERTIFICATE_EXPIRY
from rkfleet.metrics import Metrics
from rkfleet.ops import Listener, Tls, ops_app, serve_asgi
from rkfleet.tls import ignore_dates
from tests.support.clocks import START, ManualClock
from tests.support.sessions import until

HALF = timedelta(days=186)


async def shown(listener: Listener, tls: ssl.SSLContext) -> datetime:
    """Return when the certificate ends that a new caller is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=tls, server_hostname="127.0.0.1")
    try:
        ends = ssl.cert_time_to_seconds(writer.get_extra_info("ssl_object").getpeercert()["notAfter"])
        return datetime.fromtimestamp(ends, START.tzinfo)
    finally:
        writer.close()


def test_a_listener_shows_a_new_certificate_in_the_second_half_of_the_old_one_and_goes_on_where_that_fails(tmp_path: Path) -> None:
    """The controller renews the files of both programs, and each takes them over; a caller that is connected stays so."""
    clock, metrics = ManualClock(), Metrics("controller")
    pki = ensure(tmp_path, clock)
    tls = ignore_dates(ssl.create_default_context(cadata=pki.ca_pem("servers")))

    def renew() -> None:
        ensure(tmp_path, clock)

    async def body() -> None:
        app = ops_app(lambda: "", metrics.text)
        controller, registry = (Tls(*pki.server_files(name)) for name in ("controller", "registry"))
        async with (
            serve_asgi(app, "127.0.0.1", 0, tls=controller) as first,
            serve_asgi(app, "127.0.0.1", 0, tls=registry) as second,
            asyncio.TaskGroup() as tasks,
        ):
            following = [
                tasks.create_task(
                    follow_certificate(controller.cert_file, "controller", first.reload, clock=clock, metrics=metrics, renew=renew)
                ),
                tasks.create_task(follow_certificate(registry.cert_file, "registry", second.reload, clock=clock, metrics=metrics)),
            ]

            async def looked() -> None:
                clock.advance(LOOK_SECONDS)
                await until(lambda: len(clock._sleepers) == 2)

            await until(lambda: len(clock._sleepers) == 2)
            before = START + SERVER_LIFETIME
            assert [await shown(one, tls) for one in (first, second)] == [before, before]
            reader, writer = await asyncio.open_connection("127.0.0.1", first.port, ssl=tls, server_hostname="127.0.0.1")
            await looked()
            assert certificate_end(registry.cert_file) == before

            clock.advance(HALF.total_seconds())
            await until(lambda: certificate_end(registry.cert_file) > before)
            await looked()
            await looked()
            after = certificate_end(controller.cert_file)
            assert after > before + timedelta(days=180)
            assert [await shown(one, tls) for one in (first, second)] == [after, certificate_end(registry.cert_file)]
            ends = [metrics.gauge(CERTIFICATE_EXPIRY, certificate=name)._value.get() for name in ("controller", "registry")]
            assert ends == [after.timestamp(), certificate_end(registry.cert_file).timestamp()]
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert b"200 OK" in await reader.read()
            writer.close()

            registry.cert_file.write_bytes(b"torn")
            await looked()
            assert not any(one.done() for one in following)
            assert await shown(second, tls) == datetime.fromtimestamp(ends[1], START.tzinfo)
            for one in following:
                one.cancel()

    asyncio.run(body())


def ensure(directory: Path, clock: ManualClock) -> Pki:
    return Pki.ensure(directory / "pki", ["127.0.0.1"], clock.now(), "f-1")
