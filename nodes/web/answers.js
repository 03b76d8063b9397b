// Requests to the pack's own routes.

import { api } from "../../scripts/api.js";

// Sends JSON; an error that the server explains is marked as refused, so that nobody tries it again.
export async function send(route, data) {
  const answer = await api.fetchApi(route, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(data),
  });
  if (answer.ok) return;
  const said = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(said.error ?? `The server said ${answer.status}.`), { refused: answer.status === 400 });
}

export async function ask(route) {
  return (await api.fetchApi(route)).json();
}

// A picture of the output folder.
export function pictureUrl({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}
