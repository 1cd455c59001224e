// How the lab is asked: by the requests of its control socket, with the token.
//
// The token comes in the fragment of the address (#token=...), which no server sees; it is kept for this tab alone.

const KEPT = "virtfn-token";

/** The token is missing or not right. */
export class TokenError extends Error {}

/** The lab, or the process that serves this page, does not answer. */
export class GoneError extends Error {}

/** The lab refuses. errno: the name of its reason. */
export class RefusedError extends Error {
  constructor(message, errno) {
    super(message);
    this.errno = errno;
  }
}

export class Lab {
  #token = null;

  constructor() {
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    if (given) {
      history.replaceState(null, "", location.pathname);
      this.useToken(given);
    } else {
      this.#token = sessionStorage.getItem(KEPT);
    }
  }

  /** Ask with this token from now on. */
  useToken(token) {
    this.#token = token.trim();
    sessionStorage.setItem(KEPT, this.#token);
  }

  /** Ask, and return the answer. */
  async ask(method, params = {}) {
    if (!this.#token) throw new TokenError("there is no token");
    const { response, answer } = await this.#exchange(method, params);
    if (response.ok) return answer;
    const { message = response.statusText, errno = "" } = answer?.error ?? {};
    if (response.status === 401) throw new TokenError(message);
    if (response.status === 503 && errno !== "EAGAIN") throw new GoneError(message);
    throw new RefusedError(message, errno);
  }

  async #exchange(method, params) {
    try {
      const response = await fetch(`/api/${method}`, {
        method: "POST",
        headers: { Authorization: `Bearer ${this.#token}`, "Content-Type": "application/json" },
        body: JSON.stringify(params),
        signal: AbortSignal.timeout(10_000),
      });
      return { response, answer: await response.json() };
    } catch (error) {
      throw new GoneError(`no answer (${error.message})`);
    }
  }
}
