// CopyData messages of COPY … TO STDOUT as they come over the socket: their bodies, one after the other.

// Moves the bodies of whole and of begun messages to the front of `input`; `left` bytes of the first one are still to come
// from the call before. S.bytes: how many there are; S.need: bytes of the last message that are still to come;
// S.consumed: bytes of the input that are done with; ENDED_OTHER: another message begins there.
EXPORT(copy_bodies) void copy_bodies(u8 *input, u32 length, u32 left) {
  u32 at = 0, out = 0;
  S.status = ENDED_INPUT;
  for (;;) {
    u32 size = left < length - at ? left : length - at;
    if (size && at != out) __builtin_memmove(input + out, input + at, size);
    at += size; out += size; left -= size;
    if (left || length - at < 5) break;
    if (RARE(input[at] != 'd')) { S.status = ENDED_OTHER; break; }
    u32 told = be32(input + at + 1);
    if (RARE(told < 4)) { S.status = ENDED_BROKEN; S.place = 60; break; }
    left = told - 4;
    at += 5;
  }
  S.consumed = at; S.bytes = out; S.need = left;
}
