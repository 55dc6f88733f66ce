/* Squared distances between tokens, a tile of 16 x 16 at a time: distance.py. */

#ifndef TPCLI_DISTANCES_H
#define TPCLI_DISTANCES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define TILE 16

typedef float Tile[TILE][TILE];
typedef float Lanes __attribute__((vector_size(32)));
#define WIDTH ((int)(sizeof(Lanes) / sizeof(float)))
#define PARTS (TILE / WIDTH)

/* Points, centred. rows: (count, channels). values: the same in tiles of 16 tokens, channel
   by channel, so that token t's channel c is at [t / 16][c][t % 16]. norms: squared; infinite beyond
   `count`. */
typedef struct {
    int64_t count, channels, tiles;
    float *rows, *values, *norms;
} Points;

static inline const float *tile_of(const Points *points, int64_t tile)
{
    return points->values + tile * TILE * points->channels;
}

/* What `rows` holds less its mean, into tiles, and the norms. mean: room for `channels` values. */
static inline void centre(Points *points, float *mean)
{
    int64_t n = points->count, channels = points->channels;
    memset(mean, 0, channels * sizeof *mean);
    for (int64_t t = 0; t < n; t++)
        for (int64_t c = 0; c < channels; c++)
            mean[c] += points->rows[t * channels + c];
    for (int64_t c = 0; c < channels; c++)
        mean[c] /= n;
    for (int64_t tile = 0; tile < points->tiles; tile++) {
        float *values = points->values + tile * TILE * channels;
        for (int64_t i = 0; i < TILE; i++) {
            int64_t t = tile * TILE + i;
            const float *row = points->rows + t * channels;
            for (int64_t c = 0; c < channels; c++)
                values[c * TILE + i] = t < n ? row[c] - mean[c] : 0;
        }
        Lanes squares[PARTS] = {{0}}; /* summed in the order of `products`: 0 between equals */
        for (int64_t c = 0; c < channels; c++)
            for (int part = 0; part < PARTS; part++) {
                Lanes v;
                memcpy(&v, values + c * TILE + part * WIDTH, sizeof v);
                squares[part] += v * v;
            }
        memcpy(points->norms + tile * TILE, squares, sizeof squares);
    }
    for (int64_t t = n; t < points->tiles * TILE; t++)
        points->norms[t] = INFINITY;
}

/* out[i][j] = <a_i, b_j> for the tokens of two tiles. */
static inline void products(const float *a, const float *b, int64_t channels, Tile out)
{
    for (int first = 0; first < TILE; first += 4) {
        Lanes sums[4][PARTS] = {{{0}}};
        for (int64_t c = 0; c < channels; c++)
            for (int i = 0; i < 4; i++)
                for (int part = 0; part < PARTS; part++) {
                    Lanes v;
                    memcpy(&v, b + c * TILE + part * WIDTH, sizeof v);
                    sums[i][part] += a[c * TILE + first + i] * v;
                }
        memcpy(out[first], sums, sizeof sums);
    }
}

/* Squared distances between the tokens of two tiles; infinite from a token to itself. */
static inline void tile_distances(const Points *points, int64_t s, int64_t t, Tile out)
{
    products(tile_of(points, s), tile_of(points, t), points->channels, out);
    const float *norms = points->norms + t * TILE;
    for (int i = 0; i < TILE; i++)
        for (int j = 0; j < TILE; j++) {
            float d = points->norms[s * TILE + i] + norms[j] - 2 * out[i][j];
            out[i][j] = d < 0 ? 0 : d;
        }
    if (s == t)
        for (int i = 0; i < TILE; i++)
            out[i][i] = INFINITY;
}

/* All distances, (n, n); tokens that are not finite are `far` from all others. */
static inline void distance_matrix(const Points *points, float far, float *matrix)
{
    int64_t n = points->count;
    for (int64_t s = 0; s < points->tiles; s++)
        for (int64_t t = s; t < points->tiles; t++) {
            Tile d;
            tile_distances(points, s, t, d);
            for (int64_t i = 0; i < TILE && s * TILE + i < n; i++)
                for (int64_t j = 0; j < TILE && t * TILE + j < n; j++) {
                    int64_t row = s * TILE + i, column = t * TILE + j;
                    float value = d[i][j] <= far ? d[i][j] : far;
                    matrix[row * n + column] = matrix[column * n + row] = value;
                }
        }
    for (int64_t i = 0; i < n; i++)
        matrix[i * n + i] = 0;
}

/* What merging each token with its cheapest partner costs: cheapest_merge of starts.py.
   inverse: 1 / weight of each token, `tiles` full tiles of them. */
static inline void cheapest_merges(const Points *points, const float *inverse, float *cheapest)
{
    for (int64_t i = 0; i < points->tiles * TILE; i++)
        cheapest[i] = INFINITY;
    for (int64_t s = 0; s < points->tiles; s++)
        for (int64_t t = s; t < points->tiles; t++) {
            Tile cost;
            float best[TILE];
            tile_distances(points, s, t, cost);
            memcpy(best, cheapest + t * TILE, sizeof best);
            for (int i = 0; i < TILE; i++) {
                float own = INFINITY, mine = inverse[s * TILE + i];
                for (int j = 0; j < TILE; j++) {
                    cost[i][j] /= mine + inverse[t * TILE + j];
                    best[j] = cost[i][j] < best[j] ? cost[i][j] : best[j];
                }
#pragma omp simd reduction(min : own)
                for (int j = 0; j < TILE; j++)
                    own = cost[i][j] < own ? cost[i][j] : own;
                if (own < cheapest[s * TILE + i])
                    cheapest[s * TILE + i] = own;
            }
            for (int j = 0; j < TILE; j++)
                if (best[j] < cheapest[t * TILE + j])
                    cheapest[t * TILE + j] = best[j];
        }
}

#endif
