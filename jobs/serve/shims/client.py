URL = os.environ.get("ENDOREWARD_URL", "http://127.0.0.1:8000")  # of `endoreward serve`
TOKEN = os.environ.get("ENDOREWARD_TOKEN", "")  # that it wants, where it is on another machine
MODEL = os.environ.get("ENDOREWARD_MODEL", "")  # by its name there, where it has several
TRIES, TIMEOUT_S = 10, 120.0


def ask(inputs, include=()):
    """Rows of the server's POST /v1/rewards, one a response. A server that is busy, starting or out of reach is asked again.

    Raises:
        RuntimeError: where it refuses, or a response cannot be scored, with its sentence.
    """
    named = {"model": MODEL} if MODEL else {}
    body = json.dumps({**named, "inputs": inputs, "include": list(include)}).encode()
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {TOKEN}"} if TOKEN else {})}
    for number in range(1, TRIES + 1):
        try:
            request = urllib.request.Request(f"{URL.rstrip('/')}/v1/rewards", body, headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                rows = json.load(answer)["data"]
            break
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503) or number == TRIES:
                raise RuntimeError(
                    f"{URL} answers {error.code}: {error.read()[:500].decode(errors='replace')}"
                ) from None
        except OSError as error:
            if number == TRIES:
                raise RuntimeError(f"{URL} gives no answer: {error}; is `endoreward serve` up?") from None
        time.sleep(min(30.0, 0.25 * 2**number))
    failed = next((row["error"] for row in rows if "error" in row), None)
    if failed:
        raise RuntimeError(f"a response cannot be scored: {failed['reason']}: {failed['detail']}")
    return rows
