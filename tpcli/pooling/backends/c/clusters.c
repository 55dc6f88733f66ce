/* From labels to fewer tokens on the CPU, a sample to a thread: the steps of clusters.py, which says
   what they are and why. Tests hold the two together. */

#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One sample's. share: (N,), total: (K,). next: chains of the followers of each cluster, of which
   first[c] is the first; -1 ends them. rows: room for three. */
typedef struct {
    const char *x;
    int64_t prefix, channels, stride, size;
    const int64_t *lead, *followers, *into;
    const float *share;
    float *total, *rows;
    int64_t *first, *next;
    Norms norms;
} Sample;

static const char *token_at(const Sample *s, int64_t token)
{
    return s->x + token * s->stride * s->size;
}

static int64_t bytes_of(const Sample *s)
{
    return s->channels * s->size;
}

static void read_row(const Sample *s, int64_t token, float *out)
{
    const char *from = token_at(s, token);
    if (s->size == sizeof *out) {
        memcpy(out, from, bytes_of(s));
        return;
    }
    for (int64_t c = 0; c < s->channels; c++) {
        uint32_t bits = (uint32_t)((const uint16_t *)from)[c] << 16;
        memcpy(out + c, &bits, sizeof bits);
    }
}

/* To bfloat16 as torch does: to the nearest, ties to even. */
static void write_row(const Sample *s, const float *row, char *to)
{
    if (s->size == sizeof *row) {
        memcpy(to, row, bytes_of(s));
        return;
    }
    for (int64_t c = 0; c < s->channels; c++) {
        uint32_t bits;
        memcpy(&bits, row + c, sizeof bits);
        uint32_t rounded = row[c] == row[c] ? bits + 0x7fff + ((bits >> 16) & 1) : 0x7fc00000;
        ((uint16_t *)to)[c] = rounded >> 16;
    }
}

static float length_of(const float *row, int64_t channels)
{
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < channels; c++)
        squares += row[c] * row[c];
    return sqrtf(squares);
}

/* Clusters in the order of their lowest member, which leads. -1 where they are not K. */
static int number_clusters(int64_t n, const int64_t *labels, int64_t *number, int64_t k,
                           int64_t *lead, int64_t *followers, int64_t *into)
{
    int64_t clusters = 0, following = 0;
    for (int64_t t = 0; t < n; t++)
        number[t] = -1;
    for (int64_t t = 0; t < n; t++) {
        if (labels[t] < 0 || labels[t] >= n)
            return -1;
        int64_t *own = &number[labels[t]];
        if (*own < 0) {
            if (clusters == k)
                return -1;
            lead[clusters] = t;
            *own = clusters++;
        } else {
            if (following == n - k)
                return -1;
            followers[following] = t;
            into[following++] = *own;
        }
    }
    return 0;
}

static void sums(int64_t n, int64_t k, const Sample *s, const float *values, float *out)
{
    for (int64_t c = 0; c < k; c++)
        out[c] = values[s->lead[c]];
    for (int64_t f = 0; f < n - k; f++)
        out[s->into[f]] += values[s->followers[f]];
}

/* The lead and what draws the followers away from it, stretched to the members' mean length where
   asked for. */
static void mean_of(const Sample *s, int64_t cluster, char *to)
{
    int64_t channels = s->channels;
    float *lead = s->rows, *other = lead + channels, *mean = other + channels;
    read_row(s, s->prefix + s->lead[cluster], lead);
    memcpy(mean, lead, channels * sizeof *mean);
    float own = s->norms.keep ? length_of(lead, channels) : 0, length = own;
    for (int64_t f = s->first[cluster]; f >= 0; f = s->next[f]) {
        float share = s->share[s->followers[f]] / s->total[cluster];
        read_row(s, s->prefix + s->followers[f], other);
        for (int64_t c = 0; c < channels; c++)
            mean[c] += (other[c] - lead[c]) * share;
        if (s->norms.keep)
            length += (length_of(other, channels) - own) * share;
    }
    if (s->norms.keep) {
        float stretch = length / fmaxf(length_of(mean, channels), s->norms.least);
        stretch = fminf(stretch, s->norms.largest_stretch);
        for (int64_t c = 0; c < channels; c++)
            mean[c] *= stretch;
    }
    write_row(s, mean, to);
}

/* Prefix tokens and clusters of one are copied, to the bit. */
static void all_means(int64_t n, int64_t k, const Sample *s, char *to)
{
    for (int64_t p = 0; p < s->prefix; p++, to += bytes_of(s))
        memcpy(to, token_at(s, p), bytes_of(s));
    for (int64_t c = 0; c < k; c++)
        s->first[c] = -1;
    for (int64_t f = n - k - 1; f >= 0; f--) {
        s->next[f] = s->first[s->into[f]];
        s->first[s->into[f]] = f;
    }
    for (int64_t c = 0; c < k; c++, to += bytes_of(s))
        if (s->first[c] < 0)
            memcpy(to, token_at(s, s->prefix + s->lead[c]), bytes_of(s));
        else
            mean_of(s, c, to);
}

int merge_tokens(Shape shape, Tokens x, int64_t prefix, const int64_t *labels,
                 const float *counted, const float *shares, Norms norms, Clusters clusters,
                 float *sizes, void *means)
{
    int64_t n = shape.tokens, k = clusters.k, channels = shape.channels, failed = 0;
    int64_t parts = shape.batch < shape.threads ? shape.batch : shape.threads;
    size_t positions = 5 * n * sizeof(int64_t);
    size_t room = (positions + (k + 3 * channels) * sizeof(float) + 63) / 64 * 64;
    char *rooms = malloc(parts * room);
    if (!rooms)
        return -1;
#pragma omp parallel for num_threads(parts) if (parts > 1) reduction(| : failed)
    for (int64_t part = 0; part < parts; part++) {
        int64_t *number = (int64_t *)(rooms + part * room);
        int64_t *lead = number + 3 * n, *followers = lead + k, *into = followers + (n - k);
        float *total = (float *)(number + 5 * n);
        int64_t end = shape.batch * (part + 1) / parts;
        for (int64_t b = shape.batch * part / parts; b < end; b++) {
            int64_t size = x.bfloat16 ? 2 : 4;
            if (clusters.lead) {
                lead = clusters.lead + b * k;
                followers = clusters.followers + b * (n - k);
                into = clusters.into + b * (n - k);
            }
            Sample s = {.x = (const char *)x.values + b * x.sample_stride * size,
                        .prefix = prefix, .channels = channels, .stride = x.token_stride,
                        .size = size, .lead = lead, .followers = followers, .into = into,
                        .share = shares + b * n, .total = total, .rows = total + k,
                        .first = number + n, .next = number + 2 * n, .norms = norms};
            if (number_clusters(n, labels + b * n, number, k, lead, followers, into)) {
                failed = 1;
                break;
            }
            sums(n, k, &s, counted + b * n, sizes + b * k);
            sums(n, k, &s, s.share, total);
            all_means(n, k, &s, (char *)means + b * (prefix + k) * bytes_of(&s));
        }
    }
    free(rooms);
    return failed ? -1 : 0;
}
