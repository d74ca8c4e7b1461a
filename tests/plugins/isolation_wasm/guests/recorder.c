/* A guest of the record lane: gives lines back, or does what the first byte behind {"s": " says. */
#include "dataflare_records.h"
static uint8_t text[1 << 20];
static volatile uint32_t sink;

DF_EXPORT(process) int32_t process(void) {
    uint32_t n = df_input(text, sizeof text);
    if (n > sizeof text) return df_fail(1, "too long");
    const uint8_t *s = n > 7 ? text + 7 : text;
    uint32_t end = 0;
    while (s + end < text + n && s[end] != '}') end++;
    switch (s[0]) {
        case 'T': __builtin_trap();
        case 'S': for (;;) sink++;
        case 'F': return df_fail(1, "bad \033[31mrow");
        case 'A': return df_fail(2, "not now");
        case 'L': df_x_log_info(df_block(s, end)); break;
        case 'M': df_x_metric(df_block("seen", 4), 1.5); break;
        case 'P': df_x_state_put(df_block("k", 1), df_block("kept", 4)); break;
        case 'H': {
            /* {"s": "Hurl"} asks for url; the answer stands in its place */
            uint32_t size = 0;
            while (s[1 + size] != '"') size++;
            static uint8_t request[4096];
            uint32_t r = 0;
            for (const char *c = "{\"url\": \""; *c; c++) request[r++] = (uint8_t)*c;
            for (uint32_t i = 0; i < size; i++) request[r++] = s[1 + i];
            for (const char *c = "\", \"headers\": {\"X-Token\": \"${secret:token}\"}}"; *c; c++) request[r++] = (uint8_t)*c;
            uint64_t body = df_x_http_request(df_block(request, r), 0);
            uint32_t w = 0;
            for (const char *c = "{\"s\": \""; *c; c++) text[w++] = (uint8_t)*c;
            if (body) w += df_take(body, text + w, 1024);
            for (const char *c = "\"}\n"; *c; c++) text[w++] = (uint8_t)*c;
            df_output(text, df_x_http_status_code() == 200 ? w : 0);
            return 0;
        }
        case 'N': df_output("no json\n", 8); return 0;
        case 'U': df_output("{\"other\": 1}\n", 13); return 0;
        case 'I': df_output("{\"s\": 1}\n", 9); return 0;
        case 'G': for (uint32_t pages = 0;; pages++) if (__builtin_wasm_memory_grow(0, 16) == (size_t)-1) return df_fail(1, pages < 300 ? "memory ends" : "no end");
    }
    df_output(text, n);
    return 0;
}
