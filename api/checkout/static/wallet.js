// Has the text of the page signed by the wallet that paid, and sends the signature.
// Wallets are found by the wallet standard (they and this page call each other by two events), and
// by window.solana, as older ones show themselves.
(() => {
  "use strict";
  const form = document.getElementById("act"), button = document.getElementById("sign");
  const told = document.getElementById("told"), payer = form.dataset.wallet;
  const ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
  const SIGN = "solana:signMessage", CONNECT = "standard:connect";
  const wallets = new Set();
  document.documentElement.classList.add("js");

  const register = (...found) => {
    found.forEach((wallet) => wallets.add(wallet));
    return () => found.forEach((wallet) => wallets.delete(wallet));
  };
  const api = Object.freeze({ register });
  addEventListener("wallet-standard:register-wallet", (event) => event.detail(api));
  dispatchEvent(new CustomEvent("wallet-standard:app-ready", { detail: api }));

  const base58 = (bytes) => {
    let number = 0n, text = "";
    for (const byte of bytes) number = number * 256n + BigInt(byte);
    for (; number > 0n; number /= 58n) text = ALPHABET[Number(number % 58n)] + text;
    for (const byte of bytes) { if (byte) break; text = "1" + text; }
    return text;
  };

  // Gives the signature, or null where no wallet here has the account that paid.
  const standard = async (bytes) => {
    for (const wallet of [...wallets].filter((one) => one.features[SIGN])) {
      const has = () => wallet.accounts.find((one) => one.address === payer);
      if (!has() && wallet.features[CONNECT]) {
        // One wallet that refuses must not keep the payer from the next.
        try { await wallet.features[CONNECT].connect(); } catch { continue; }
      }
      const account = has();
      if (!account) continue;
      const [answer] = await wallet.features[SIGN].signMessage({ account, message: bytes });
      return answer.signature;
    }
    return null;
  };
  const injected = async (bytes) => {
    const wallet = window.solana;
    if (!wallet || !wallet.signMessage) return null;
    const { publicKey } = (await wallet.connect()) || wallet;
    if (String(publicKey || wallet.publicKey) !== payer) return null;
    return (await wallet.signMessage(bytes, "utf8")).signature;
  };

  button.addEventListener("click", async () => {
    const reason = document.getElementById("reason");
    if (reason && !reason.reportValidity()) return;
    told.textContent = "";
    if (!wallets.size && !window.solana) { told.textContent = form.dataset.none; return; }
    button.disabled = true;
    try {
      const bytes = new TextEncoder().encode(document.getElementById("text").textContent);
      const signature = (await standard(bytes)) || (await injected(bytes));
      if (signature) {
        document.getElementById("signature").value = base58(signature);
        form.requestSubmit();
        return;
      }
      told.textContent = form.dataset.other;
    } catch {
      told.textContent = form.dataset.refused;
    }
    button.disabled = false;
  });
})();
