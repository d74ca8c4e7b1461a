/* Both ends of the record lane: `read` counts to 12, `write` puts lines into the plugin's state. */
#include "dataflare_records.h"
static uint8_t text[65536];

DF_EXPORT(describe) int32_t describe(void) {
    static const char said[] =
#ifdef DESTINATION
        "{\"kind\": \"destination\", \"modes\": [\"append\"]}";
#else
        "{\"kind\": \"source\", \"key\": [\"n\"], \"columns\": [{\"name\": \"n\", \"format\": \"l\"}, {\"name\": \"t\", \"format\": \"u\"}]}";
#endif
    df_output(said, sizeof said - 1);
    return 0;
}

#ifdef DESTINATION
DF_EXPORT(write) int32_t write_lines(void) {
    uint64_t had = df_x_state_get(df_block("rows", 4));
    uint32_t n = had ? df_take(had, text, sizeof text) : 0;
    n += df_input(text + n, sizeof text - n);
    if (n > sizeof text) return df_fail(4, "the state is full");
    df_x_state_put(df_block("rows", 4), df_block(text, n));
    return 0;
}
#else
static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* {"state": "QQ==", "max_rows": 3}: the state is one byte, 64 + how many rows were read. */
DF_EXPORT(read) int32_t read_lines(void) {
    uint32_t size = df_input(text, sizeof text), done = 0, most = 0, w = 0;
    if (text[10] == '"') {
        uint32_t a = 0, b = 0;
        while (base64[a] != (char)text[11]) a++;
        while (base64[b] != (char)text[12]) b++;
        done = ((a << 2 | b >> 4) & 255) - 64;
    }
    uint32_t at = size - 1;
    while (text[at - 1] != ' ') at--;
    for (; text[at] != '}'; at++) most = most * 10 + (text[at] - '0');
    uint32_t rows = 12 - done < most ? 12 - done : most, next = 64 + done + rows;
    static uint8_t out[4096];
    for (const char *c = "{\"state\": \""; *c; c++) out[w++] = (uint8_t)*c;
    out[w++] = (uint8_t)base64[next >> 2], out[w++] = (uint8_t)base64[(next & 3) << 4], out[w++] = '=', out[w++] = '=';
    for (const char *c = done + rows == 12 ? "\", \"done\": true}\n" : "\", \"done\": false}\n"; *c; c++) out[w++] = (uint8_t)*c;
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t n = done + i;
        for (const char *c = "{\"n\": "; *c; c++) out[w++] = (uint8_t)*c;
        if (n > 9) out[w++] = '1';
        out[w++] = (uint8_t)('0' + n % 10);
        for (const char *c = ", \"t\": \"row\"}\n"; *c; c++) out[w++] = (uint8_t)*c;
    }
    df_output(out, w);
    return 0;
}
#endif
