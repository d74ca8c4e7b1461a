/* post: every epoch's rows as JSON lines, in one request. The host asks; the token is put in there and never seen here. */
#include "dataflare.h"

static df_bytes url;
static df_writer lines; /* what is staged */
static uint64_t staged;

DF_EXPORT(df_describe) const df_bytes *df_describe(void) { return df_says("{\"kind\": \"destination\", \"modes\": [\"append\"]}"); }

/* The address is made of scheme, host, port and path: host and port are what the operator grants. */
DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) {
    df_bytes host = df_config_text(config, "host"), port = df_config_text(config, "port"), path = df_config_text(config, "path");
    df_bytes scheme = df_config_text(config, "scheme");
    if (!port.len) port = df_config(config, "port"); /* a number, or the text that ${env:...} is */
    if (!host.len || !port.len) return df_fail(DF_CONFIG, "'host' and 'port' say where to send rows");
    uint32_t size = host.len + port.len + path.len + scheme.len + 16;
    df_writer w = {df_new(size), 0, size};
    if (!w.ptr) return df_fail(DF_FATAL, "no memory");
    if (scheme.len) df_put(&w, scheme.ptr, scheme.len);
    else df_say(&w, "https");
    df_say(&w, "://");
    df_put(&w, host.ptr, host.len);
    df_say(&w, ":");
    df_put(&w, port.ptr, port.len);
    if (path.len) df_put(&w, path.ptr, path.len);
    else df_say(&w, "/");
    url = (df_bytes){w.ptr, w.len};
    df_keep();
    return 0;
}

static bool value(df_writer *w, const ArrowArray *a, const ArrowSchema *s, uint32_t i) {
    if (df_is_null(a, i)) return df_say(w, "null");
    if (s->format[0] == 'l') return df_say_int(w, ((const int64_t *)df_values(a))[i]);
    const int32_t *ends = df_offsets(a);
    return df_say_json(w, df_text(a) + ends[i], (uint32_t)(ends[i + 1] - ends[i]));
}

DF_EXPORT(df_write) uint32_t df_write(ArrowArray *in, ArrowSchema *schema) {
    for (int64_t c = 0; c < schema->n_children; c++)
        if (schema->children[c]->format[0] != 'l' && schema->children[c]->format[0] != 'u') return df_fail(DF_CONFIG, "columns must be BIGINT or VARCHAR");
    uint32_t before = lines.len, rows = (uint32_t)in->length, columns = (uint32_t)in->n_children;
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t size = 2;
        for (uint32_t c = 0; c < columns; c++) {
            const ArrowArray *a = in->children[c];
            size += 24 + 6 * df_length(schema->children[c]->name) + (a->n_buffers == 3 ? 6 * (uint32_t)(df_offsets(a)[i + 1] - df_offsets(a)[i]) : 0);
        }
        if (!df_room(&lines, size)) {
            lines.len = before; /* all of a batch or nothing */
            return df_fail(DF_FATAL, "no memory to stage rows");
        }
        for (uint32_t c = 0; c < columns; c++) {
            const char *name = schema->children[c]->name;
            df_say(&lines, c ? ", " : "{");
            df_say_json(&lines, (const uint8_t *)name, df_length(name));
            df_say(&lines, ": ");
            value(&lines, in->children[c], schema->children[c], i);
        }
        df_say(&lines, "}\n");
    }
    staged += rows;
    return 0;
}

DF_EXPORT(df_flush) uint32_t df_flush(df_ack *ack) {
    if (staged) {
        uint32_t size = 6 * lines.len + url.len + 256;
        df_writer request = {df_new(size), 0, size};
        if (!request.ptr) return df_fail(DF_FATAL, "no memory for a request");
        df_say(&request, "{\"method\": \"POST\", \"url\": \"");
        df_put(&request, url.ptr, url.len);
        df_say(&request, "\", \"headers\": {\"Content-Type\": \"application/jsonl\", \"Authorization\": \"Bearer ${secret:post_token}\"}, \"body\": ");
        df_say_json(&request, lines.ptr, lines.len);
        df_say(&request, "}");
        int32_t status = df_host_http_send(request.ptr, request.len);
        if (status < 200 || status > 299) return df_fail(DF_TRY_LATER, "the server did not take the rows");
    }
    ack->rows = staged;
    staged = 0, lines.len = 0;
    return 0;
}
