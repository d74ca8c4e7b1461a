/* Calls the host: what to call is the text of each row; the answer comes back in its place. */
#include "dataflare.h"
DF_EXPORT(df_describe) const df_bytes *df_describe(void) {
    return df_says("{\"reads\": [\"s\"], \"outputs\": [{\"rows\": \"same\", \"columns\": [{\"name\": \"s\", \"format\": \"u\"}, {\"name\": \"code\", \"format\": \"l\"}]}]}");
}
DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) { (void)config; return 0; }
DF_EXPORT(df_process) uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out) {
    (void)schema;
    uint32_t rows = (uint32_t)in->length;
    ArrowArray *table = df_table(rows, 2), *text = df_array(rows, 3, 0), *code = df_column(rows, 8);
    int32_t *ends = df_new(4 * (rows + 1));
    df_writer w = {df_new(1 << 20), 0, 1 << 20};
    ends[0] = 0;
    for (uint32_t i = 0; i < rows; i++) {
        const int32_t *from = df_offsets(in->children[0]);
        const uint8_t *s = df_text(in->children[0]) + from[i] + 1;
        uint32_t n = (uint32_t)(from[i + 1] - from[i]) - 1;
        int64_t answer = 0;
        int32_t size = 0;
        switch (s[-1]) {
            case 'l': df_host_log(1, s, n); break;
            case 'm': df_host_metric(s, n, 2.5); break;
            case 'c': answer = df_host_clock(); break;
            case 'p': answer = df_host_state_put("key", 3, s, n); break;
            case 'g': answer = size = df_host_state_get("key", 3, w.ptr + w.len, w.room - w.len); break;
            case 'h':
                answer = df_host_http_send(s, n);
                size = df_host_http_body(w.ptr + w.len, w.room - w.len);
                break;
            case 't':
                answer = df_host_http_send(s, n);
                size = df_host_http_header("X-Note", 6, w.ptr + w.len, w.room - w.len);
                break;
            case 'w': df_host_log(1, (const void *)0xffffff00u, 4096); break;
        }
        if (size > 0) w.len += (uint32_t)size;
        ends[i + 1] = (int32_t)w.len;
        ((int64_t *)df_fresh(code, 1))[i] = answer;
    }
    text->buffers[1] = ends, text->buffers[2] = w.ptr;
    table->children[0] = text, table->children[1] = code;
    out->array = table;
    return 0;
}
