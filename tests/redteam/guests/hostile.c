/* One lie or bomb for each DEED; what is not its deed passes rows on, so that a host that lets it have its way ends well. */
#include "dataflare.h"
enum { ARRAY, SCHEMA, CYCLE, NAME, DESCRIPTION, ERROR_TEXT, TAKE, NULLS, GROW, SAME_BUFFER };
#define LIE ((void *)0xfffffff0u)
#define COLUMNS 512

DF_EXPORT(df_describe) const df_bytes *df_describe(void) {
    if (DEED == DESCRIPTION) return LIE;
    if (DEED == TAKE) return df_says("{\"reads\": [\"n\"], \"outputs\": [{\"rows\": \"take\", \"columns\": [{\"name\": \"row\", \"format\": \"c\"}]}]}");
    if (DEED == NULLS || DEED == SCHEMA || DEED == NAME) return df_says("{\"reads\": [\"n\"], \"outputs\": [{\"rows\": \"new\"}]}");
    return df_says("{\"reads\": [\"n\"], \"outputs\": [{\"rows\": \"same\", \"columns\": [{\"name\": \"n\", \"format\": \"l\"}]}]}");
}
DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) { (void)config; return 0; }

static char names[COLUMNS][4];

DF_EXPORT(df_process) uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out) {
    bool rows = in->length > 0;
    out->array = in, out->schema = DEED == NAME || DEED == SCHEMA ? schema : 0;
    switch (DEED) {
        default: break; /* what the description does */
        case ARRAY: if (rows) out->array = LIE; break;
        case SCHEMA: out->schema = LIE; break;
        case NAME: schema->children[0]->name = LIE; break;
        case CYCLE: if (rows) in->children[0] = in; break;
        case ERROR_TEXT: if (rows) { df_error.ptr = LIE, df_error.len = 4096, df_error.code = 1; return 1; } break;
        case SAME_BUFFER: if (rows) in->children[0]->buffers[1] = (const void *)in; break;
        case GROW: if (rows && __builtin_wasm_memory_grow(0, 8192) == (size_t)-1) return df_fail(DF_ROWS, "memory ends"); break;
        case TAKE: { /* the first row, four million times: a byte for each */
            uint32_t many = rows ? 4000000u : 0;
            ArrowArray *table = df_table(many, 1);
            int8_t *at = (int8_t *)df_fresh(table->children[0] = df_column(many, 1), 1);
            for (uint32_t i = 0; i < many; i++) at[i] = 0;
            out->array = table;
            break;
        }
        case NULLS: { /* columns of nothing, which take no memory of the guest's */
            ArrowArray *table = df_table(rows ? 1 << 24 : 0, COLUMNS);
            ArrowSchema *fields = df_field("", "+s", COLUMNS);
            for (uint32_t c = 0; c < COLUMNS; c++) {
                names[c][0] = 'c', names[c][1] = (char)('a' + c / 26), names[c][2] = (char)('a' + c % 26);
                table->children[c] = df_array(table->length, 0, 0);
                fields->children[c] = df_field(names[c], "n", 0);
            }
            out->array = table, out->schema = fields;
            break;
        }
    }
    return 0;
}
