/* Ward's clustering on the CPU, a sample to a thread: the steps of ward.py, which says what they are
   and why. Tests hold the two together. */

#include "distances.h"
#include "kernels.h"

#include <stdlib.h>

/* Compiled once more for processors with AVX, all that it calls included. */
#if defined(__x86_64__) && defined(__GNUC__) && defined(__gnu_linux__)
#define WIDE __attribute__((flatten, target_clones("fma", "default")))
#else
#define WIDE
#endif

/* A price, not negative, and whose it is, as one number in the order of prices, then of indices. */
typedef uint64_t Offer;

static inline Offer offer(float price, int64_t index)
{
    uint32_t bits; /* of floats that are not negative, in their order */
    memcpy(&bits, &price, sizeof bits);
    return (Offer)bits << 32 | (uint32_t)index;
}

static inline int64_t offered_by(Offer offer)
{
    return (int64_t)(uint32_t)offer;
}

/* Bring the `count` smallest to the front, in any order: Hoare's selection. */
static void select_smallest(Offer *offers, int64_t n, int64_t count)
{
    int64_t low = 0, high = n - 1;
    while (low < high) {
        Offer pivot = offers[(low + high) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (offers[i] < pivot)
                i++;
            while (offers[j] > pivot)
                j--;
            if (i <= j) {
                Offer swapped = offers[i];
                offers[i++] = offers[j];
                offers[j--] = swapped;
            }
        }
        if (count <= j)
            high = j;
        else if (count >= i)
            low = i;
        else
            break;
    }
}

/* Make the cheapest merges among n clusters: root[i] is the cluster that i ends up in. */
static void merge_cheapest(const float *matrix, const float *inverse, int64_t n, int64_t merges,
                           float reluctance, float *price, Offer *offers, int64_t *partner,
                           int64_t *root)
{
    for (int64_t i = 0; i < n; i++) {
        const float *row = matrix + i * n;
        float best = INFINITY;
        partner[i] = i ? 0 : 1;
        for (int64_t j = 0; j < n; j++) {
            float cost = row[j] / (inverse[i] + inverse[j]);
            if (cost < best && j != i) {
                best = cost;
                partner[i] = j;
            }
        }
        price[i] = best;
    }
    for (int64_t i = 0; i < n; i++) {
        int mutual = partner[partner[i]] == i;
        if (mutual && i < partner[i]) /* of a reciprocal pair the lower one stays */
            price[i] = INFINITY;
        offers[i] = offer(mutual ? price[i] : reluctance * price[i], i);
        root[i] = i;
    }
    select_smallest(offers, n, merges);
    for (int64_t m = 0; m < merges; m++)
        root[offered_by(offers[m])] = partner[offered_by(offers[m])];
    for (int64_t hops = 1; hops < 2 * merges; hops *= 2)
        for (int64_t i = 0; i < n; i++)
            root[i] = root[root[i]];
}

/* Distances between means of clusters from those of their members: (n, n) -> (k, k), in place. */
static void distances_between_means(float *matrix, float *rows, float *weights, int64_t n,
                                    int64_t k, const int64_t *cluster, float *total)
{
    memset(total, 0, k * sizeof *total);
    for (int64_t i = 0; i < n; i++)
        total[cluster[i]] += weights[i];
    memset(rows, 0, k * n * sizeof *rows);
    for (int64_t i = 0; i < n; i++) {
        float share = weights[i] / total[cluster[i]];
        for (int64_t j = 0; j < n; j++)
            rows[cluster[i] * n + j] += share * matrix[i * n + j];
    }
    memset(matrix, 0, k * k * sizeof *matrix);
    for (int64_t a = 0; a < k; a++)
        for (int64_t j = 0; j < n; j++)
            matrix[a * k + cluster[j]] += weights[j] / total[cluster[j]] * rows[a * n + j];
    memcpy(weights, total, k * sizeof *weights);
    for (int64_t a = 0; a < k; a++)
        total[a] = matrix[a * k + a] / 2; /* within */
    for (int64_t a = 0; a < k; a++)
        for (int64_t b = 0; b <= a; b++) {
            float d = (matrix[a * k + b] + matrix[b * k + a]) / 2 - total[a] - total[b];
            matrix[a * k + b] = matrix[b * k + a] = d < 0 ? 0 : d;
        }
}

static void layer_norm(const float *token, int64_t channels, float epsilon, float *out)
{
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < channels; c++)
        sum += token[c];
    float mean = sum / channels;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < channels; c++)
        squares += (token[c] - mean) * (token[c] - mean);
    float scale = 1 / sqrtf(squares / channels + epsilon);
    for (int64_t c = 0; c < channels; c++)
        out[c] = (token[c] - mean) * scale;
}

/* Sums of channels that are equal modulo `dim`, of length 1 where z is still to be normalized. */
static void sketch_of(const float *restrict token, int64_t channels, const Ward *ward,
                      float *restrict out)
{
    int64_t dim = ward->sketch_dim;
    float squares = 0;
    memset(out, 0, dim * sizeof *out);
    for (; channels >= dim; channels -= dim, token += dim)
        for (int64_t c = 0; c < dim; c++)
            out[c] += token[c];
    for (int64_t c = 0; c < channels; c++)
        out[c] += token[c];
    if (!ward->normalized)
        return;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < dim; c++)
        squares += out[c] * out[c];
    float length = fmaxf(sqrtf(squares), ward->least_length);
    for (int64_t c = 0; c < dim; c++)
        out[c] /= length;
}

/* What one sample needs; `sketch` where not all tokens take part. */
typedef struct {
    Points sketch, points;
    float *mean, *cheapest, *mass, *inverse, *total, *matrix, *rows;
    int64_t *chosen, *partner, *root, *cluster, *first;
    Offer *offers;
    uintptr_t end;
} Room;

static void *room_for(Room *room, int64_t count, size_t size)
{
    uintptr_t start = room->end;
    room->end += (count * size + 63) / 64 * 64;
    return (void *)start;
}

static Points points_in(Room *room, int64_t count, int64_t channels)
{
    Points points = {.count = count, .channels = channels, .tiles = (count + TILE - 1) / TILE};
    points.rows = room_for(room, count * channels, sizeof(float));
    points.values = room_for(room, points.tiles * TILE * channels, sizeof(float));
    points.norms = room_for(room, points.tiles * TILE, sizeof(float));
    return points;
}

/* Lay a room out from the address `start`; its size is `end` less `start`. */
static Room lay_out(uintptr_t start, int64_t n, int64_t channels, const Ward *ward)
{
    Room room = {.end = start};
    int64_t padded = n + TILE, m = ward->candidates;
    room.sketch = points_in(&room, m < n ? n : 0, ward->sketch_dim);
    room.points = points_in(&room, m, channels);
    room.mean = room_for(&room, channels + ward->sketch_dim, sizeof(float));
    float **floats[] = {&room.cheapest, &room.mass, &room.inverse, &room.total};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        *floats[i] = room_for(&room, padded, sizeof(float));
    room.matrix = room_for(&room, m * m, sizeof(float));
    room.rows = room_for(&room, m * m, sizeof(float));
    int64_t **positions[] = {&room.chosen, &room.partner, &room.root, &room.cluster, &room.first};
    for (size_t i = 0; i < sizeof positions / sizeof *positions; i++)
        *positions[i] = room_for(&room, padded, sizeof(int64_t));
    room.offers = room_for(&room, n, sizeof(Offer));
    return room;
}

/* The tokens that a sketch finds nearest to a partner, ascending: near_a_partner of ward.py. */
static void near_a_partner(Room *room, const float *z, int64_t stride, int64_t channels,
                           const float *weights, const Ward *ward)
{
    Points *sketch = &room->sketch;
    int64_t n = sketch->count, count = ward->candidates;
    for (int64_t t = 0; t < n; t++)
        sketch_of(z + t * stride, channels, ward, sketch->rows + t * ward->sketch_dim);
    for (int64_t t = 0; t < sketch->tiles * TILE; t++)
        room->inverse[t] = t < n ? 1 / weights[t] : 1;
    centre(sketch, room->mean);
    cheapest_merges(sketch, room->inverse, room->cheapest);
    for (int64_t t = 0; t < n; t++)
        room->offers[t] = offer(room->cheapest[t], t);
    select_smallest(room->offers, n, count);
    memset(room->root, 0, n * sizeof *room->root);
    for (int64_t i = 0; i < count; i++)
        room->root[offered_by(room->offers[i])] = 1;
    for (int64_t t = 0, i = 0; t < n; t++)
        if (room->root[t])
            room->chosen[i++] = t;
}

/* -1 where a weight is not positive and finite. */
WIDE static int cluster_sample(Room *room, Shape shape, const float *z, int64_t stride,
                               const float *weights, const Ward *ward, int64_t *labels)
{
    int64_t n = shape.tokens, m = ward->candidates, live = m;
    for (int64_t t = 0; t < n; t++)
        if (!(weights[t] > 0 && weights[t] < INFINITY))
            return -1;
    if (m < n)
        near_a_partner(room, z, stride, shape.channels, weights, ward);
    for (int64_t i = 0; i < m; i++) {
        int64_t token = m < n ? room->chosen[i] : i;
        float *row = room->points.rows + i * shape.channels;
        if (ward->normalized)
            layer_norm(z + token * stride, shape.channels, ward->layer_norm_epsilon, row);
        else
            memcpy(row, z + token * stride, shape.channels * sizeof *row);
        room->chosen[i] = token;
        room->mass[i] = weights[token];
        room->cluster[i] = i;
    }
    centre(&room->points, room->mean);
    distance_matrix(&room->points, ward->far, room->matrix);
    int64_t *of_live = room->partner; /* free between rounds */
    for (int64_t round = 0; round < ward->rounds; round++) {
        for (int64_t i = 0; i < live; i++)
            room->inverse[i] = 1 / room->mass[i];
        merge_cheapest(room->matrix, room->inverse, live, ward->merges[round], ward->reluctance,
                       room->cheapest, room->offers, room->partner, room->root);
        int64_t left = 0;
        for (int64_t i = 0; i < live; i++)
            room->first[i] = -1;
        for (int64_t i = 0; i < live; i++) { /* number them by their lowest member */
            int64_t *number = &room->first[room->root[i]];
            of_live[i] = *number < 0 ? (*number = left++) : *number;
        }
        for (int64_t i = 0; i < m; i++)
            room->cluster[i] = of_live[room->cluster[i]];
        if (round + 1 < ward->rounds)
            distances_between_means(room->matrix, room->rows, room->mass, live, left, of_live,
                                    room->total);
        live = left;
    }
    for (int64_t t = 0; t < n; t++)
        labels[t] = t;
    for (int64_t c = 0; c < live; c++)
        room->first[c] = -1;
    for (int64_t i = 0; i < m; i++) {
        int64_t *lowest = &room->first[room->cluster[i]];
        *lowest = *lowest < 0 ? room->chosen[i] : *lowest;
        labels[room->chosen[i]] = *lowest;
    }
    return 0;
}

int ward_labels(Shape shape, Tokens z, const float *weights, Ward ward, int64_t *labels)
{
    int64_t n = shape.tokens, parts = shape.batch < shape.threads ? shape.batch : shape.threads;
    size_t size = lay_out(0, n, shape.channels, &ward).end;
    int failed = 0;
    char *rooms = malloc(parts * size);
    if (!rooms)
        return -1;
#pragma omp parallel for num_threads(parts) if (parts > 1) reduction(| : failed)
    for (int64_t part = 0; part < parts; part++) {
        Room room = lay_out((uintptr_t)rooms + part * size, n, shape.channels, &ward);
        int64_t end = shape.batch * (part + 1) / parts;
        for (int64_t b = shape.batch * part / parts; b < end; b++)
            failed |= cluster_sample(&room, shape, (const float *)z.values + b * z.sample_stride,
                                     z.token_stride, weights + b * n, &ward, labels + b * n);
    }
    free(rooms);
    return failed;
}
